// What the page does beyond links and forms: parts that stay live, the plan of a form, the chat.
"use strict";

const GONE = "The page does not answer. Is `edgetune view` still running?";
const HEADERS = { "x-edgetune-page": "1" };
const byId = (id) => document.getElementById(id);

// Parts that stay live ------------------------------------------------------------------------

function sameKind(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName
    && (old.id || "") === (fresh.id || "");
}

/** Make a node like a fresh one and keep what need not change: focus, selection, what is open. */
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType === Node.TEXT_NODE) { old.data = fresh.data; return; }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  for (const { name } of [...old.attributes]) {
    const opened = name === "open" && old.nodeName === "DETAILS";
    if (!opened && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    if (wanted.id && !(at && at.id === wanted.id)) {
      const found = [...old.children].find((child) => child.id === wanted.id);
      if (found) { old.insertBefore(found, at); at = found; }
    }
    if (at && sameKind(at, wanted)) {
      morph(at, wanted);
      at = at.nextSibling;
    } else {
      old.insertBefore(wanted, at);
    }
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

/** Say a change of state to screen readers, once. */
function tell(part) {
  const said = [...part.querySelectorAll("[data-tell]")].map((node) => node.dataset.tell).join(" ");
  if (part.dataset.told !== undefined && part.dataset.told !== said) byId("told").textContent = said;
  part.dataset.told = said;
}

async function refresh(part) {
  const address = new URL(part.dataset.live, location.href);
  address.searchParams.set("version", part.dataset.version);
  const answer = await fetch(address, { headers: HEADERS });
  if (!answer.ok) throw new Error((await answer.json()).error);
  part.dataset.cost = answer.headers.get("x-milliseconds");
  if (answer.status === 204) return;
  part.dataset.version = answer.headers.get("x-version");
  const fresh = document.createElement("div");
  fresh.innerHTML = await answer.text();
  const focused = part.contains(document.activeElement);
  morphChildren(part, fresh);
  if (focused && !part.contains(document.activeElement)) part.querySelector("[tabindex='-1']")?.focus();
  tell(part);
  part.dispatchEvent(new Event("refreshed"));
}

/** Ask again and again, for a fiftieth of the processor's time at most: a training has it first. */
async function keepLive(part) {
  tell(part);
  for (;;) {
    const pause = Math.max(Number(part.dataset.every), 50 * Number(part.dataset.cost ?? 0));
    await new Promise((done) => setTimeout(done, pause));
    if (document.hidden) continue;
    try {
      await refresh(part);
      complain("", "lost");
    } catch (error) {
      complain(messageOf(error), "lost");
    }
  }
}

function messageOf(error) {
  return error instanceof TypeError ? GONE : error.message;
}

function complain(message, about = "") {
  const alert = byId("alert");
  if (!message && alert.dataset.about !== about) return;
  if (alert.textContent === message) return;
  alert.textContent = message;
  alert.dataset.about = about;
  alert.hidden = !message;
}

// Buttons that act without leaving the page ----------------------------------------------------

async function act(form) {
  const button = form.querySelector("button");
  if (button.ariaDisabled === "true") return;
  if (form.dataset.sure && !confirm(form.dataset.sure)) return;
  button.ariaDisabled = "true"; // one that is disabled would lose the focus
  try {
    const answer = await fetch(form.action, {
      method: "POST", headers: HEADERS, body: new URLSearchParams(new FormData(form)),
    });
    if (answer.ok) complain("", "act");
    else complain((await answer.json()).error, "act");
  } finally {
    button.ariaDisabled = null;
  }
  await refresh(form.closest("[data-live]"));
}

document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-act]")) return;
  event.preventDefault();
  act(event.target).catch((error) => complain(messageOf(error), "act"));
});

// The list: find and compare ---------------------------------------------------------------------

function listRuns(form) {
  const find = byId("find"), button = byId("compare"), note = byId("ticked"), part = byId("runs");
  const ticks = () => [...form.querySelectorAll("input[name=run]:checked")];
  const count = () => {
    const many = ticks().length;
    button.disabled = many < 2 || many > 6;
    note.textContent = many ? `${many} ticked${many > 6 ? "; six at most" : many < 2 ? "; one more" : ""}`
      : "Tick two to six runs to compare them.";
  };
  const sift = () => {
    const wanted = find.value.trim().toLowerCase().split(/\s+/);
    for (const row of part.querySelectorAll("tr[data-text]")) {
      const text = row.dataset.text.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  };
  find.addEventListener("input", sift);
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") event.preventDefault(); });
  form.addEventListener("change", count);
  part.addEventListener("refreshed", () => { sift(); count(); });
  count();
}

// A new run: the plan follows the form -------------------------------------------------------------

function planAlong(form) {
  const plan = byId("plan"), busy = byId("busy"), look = byId("look"), section = plan.closest(".plan");
  let timer = 0, running = null, named = form.elements.name.value !== "";

  const show = ({ html, errors, chosen }) => {
    if (html) plan.innerHTML = html;
    section.classList.toggle("stale", !html);
    for (const note of form.querySelectorAll(".wrong")) note.textContent = errors[note.id.slice(2)] ?? "";
    for (const field of form.querySelectorAll("[data-field]")) {
      const input = field.querySelector("input, select");
      if (errors[field.dataset.field]) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
      const value = chosen?.[field.dataset.field];
      if (value === undefined || value === "") continue;
      if (input.tagName === "INPUT") input.placeholder = `${value} (planned)`;
      else input.querySelector("[data-chosen]").textContent = `${value} (planned)`;
    }
    const said = Object.values(errors);
    byId("told").textContent = said.length ? said[0] : plan.querySelector(".fit")?.textContent ?? "";
    const hidden = [...form.querySelectorAll("details .wrong")].find((note) => note.textContent);
    if (hidden) hidden.closest("details").open = true;
  };

  const ask = async () => {
    const data = form.elements.data.value.trim(), model = form.elements.model.value.trim();
    look.hidden = !data || !model;
    look.href = `/rows?${new URLSearchParams({ model, data })}`;
    if (!model) return;
    running?.abort();
    running = new AbortController();
    busy.hidden = false;
    try {
      const answer = await fetch(form.dataset.plan, {
        method: "POST", headers: HEADERS, signal: running.signal,
        body: new URLSearchParams(new FormData(form)),
      });
      const found = await answer.json();
      if (answer.ok) show(found);
      else complain(found.error, "plan");
      busy.hidden = true;
    } catch (error) {
      if (error.name === "AbortError") return;
      busy.hidden = true;
      complain(GONE, "plan");
    }
  };

  const propose = () => {
    if (named) return;
    const stem = (path) => path.split("/").filter(Boolean).pop()?.split(".")[0] ?? "";
    const parts = [stem(form.elements.data.value.trim()), form.elements.model.value.trim().split("/").pop()];
    form.elements.name.value = parts.filter(Boolean).join("-").replace(/[^\w.-]+/g, "-");
  };

  const suggest = async () => {
    const typed = form.elements.data.value;
    const answer = await fetch(`/new/files?${new URLSearchParams({ typed })}`, { headers: HEADERS });
    if (!answer.ok) return;
    const list = byId("files"), found = [...list.querySelectorAll("[data-found]")];
    const known = new Set(found.map((option) => option.value));
    const options = (await answer.json()).files.filter((file) => !known.has(file)).map((file) => {
      const option = document.createElement("option");
      option.value = file;
      return option;
    });
    list.replaceChildren(...found, ...options);
  };

  form.addEventListener("input", (event) => {
    if (event.target.name === "name") named = event.target.value !== "";
    if (event.target.name === "data") suggest();
    if (event.target.name === "data" || event.target.name === "model") propose();
    if (event.target.name === "name") return;
    clearTimeout(timer);
    timer = setTimeout(ask, 150);
  });
  suggest();
  if (!form.querySelector(".wrong:not(:empty)")) ask();
  form.querySelector("[aria-invalid]")?.focus();
}

// The chat ---------------------------------------------------------------------------------------------

function addTo(parent, tag, text, kind) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  parent.append(node);
  return node;
}

async function* linesOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

function chat(form) {
  const talk = byId("talk"), send = byId("send"), halt = byId("halt"), question = byId("question");
  const run = form.elements.run.value;
  const post = (where, fields) => fetch(where, {
    method: "POST", headers: HEADERS, body: new URLSearchParams(fields),
  });

  const answerIn = async (turn, fields) => {
    const answer = await post("/chat/ask", fields);
    if (!answer.ok) { complain((await answer.json()).error, "chat"); turn.remove(); return; }
    const answers = addTo(turn, "div", "", "answers");
    const waiting = addTo(answers, "p", "Loading the model…", "note");
    let texts = [];
    for await (const line of linesOf(answer)) {
      if (line.error) { complain(line.error, "chat"); break; }
      if (line.sides) {
        waiting.remove();
        if (line.fresh && turn.previousElementSibling) addTo(turn, "p", "The model was opened anew; what was said before is forgotten.", "note");
        texts = line.sides.map((side) => {
          const box = addTo(answers, "div", "", "answer");
          addTo(box, "h3", side);
          return addTo(box, "p", "");
        });
      }
      if (line.text !== undefined) texts[line.side].textContent += line.text;
      if (line.stopped) addTo(turn, "p", "Stopped.", "note");
    }
    waiting.remove();
    if (!texts.length) { turn.remove(); return; }
    for (const text of texts) if (!text.textContent) { text.textContent = "(nothing)"; text.className = "note"; }
    const said = [...turn.querySelectorAll(".answer")].map((box) => `${box.firstChild.textContent}: ${box.lastChild.textContent}`);
    byId("told").textContent = said.join(". ");
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = question.value.trim();
    if (!asked || send.disabled) return;
    complain("", "chat");
    const fields = new FormData(form);
    fields.set("longest", fields.get("longest").trim() || "0");
    const turn = addTo(talk, "div", "", "turn");
    addTo(turn, "p", asked, "asked");
    question.value = "";
    send.disabled = true;
    halt.disabled = false;
    try {
      await answerIn(turn, fields);
    } catch {
      complain(GONE, "chat");
    }
    send.disabled = false;
    halt.disabled = true;
    question.focus();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  halt.addEventListener("click", () => post("/chat/stop", {}));
  byId("forget").addEventListener("click", async () => {
    await post("/chat/reset", { run });
    talk.replaceChildren();
    byId("told").textContent = "What was said is forgotten.";
    question.focus();
  });
}

// An export ----------------------------------------------------------------------------------------------

function exportAs(form) {
  const output = byId("output");
  const format = () => form.elements.to.value;
  const place = () => `${form.dataset.suggest}-${format()}${format() === "gguf" ? ".gguf" : ""}`;
  let own = ![...form.elements.to].some((one) => output.value === `${form.dataset.suggest}-${one.value}`);
  form.addEventListener("input", (event) => {
    if (event.target === output) own = true;
    if (event.target.name === "to" && !own) output.value = place();
  });
}

// -----------------------------------------------------------------------------------------------------------

for (const part of document.querySelectorAll("[data-live]")) keepLive(part);
for (const form of document.querySelectorAll("[data-compare]")) listRuns(form);
for (const form of document.querySelectorAll("form.new")) planAlong(form);
for (const form of document.querySelectorAll("[data-chat]")) chat(form);
for (const form of document.querySelectorAll("[data-suggest]")) exportAs(form);
