"""``edgetune export``: files that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.cli.options import FilePath, Ref, Size, common_options, over_options
from edgetune.cli.show import VERBOSE, out, out_json, say
from edgetune.exporters import EXPORTERS
from edgetune.exporters.gguf.mixture import MIXTURES
from edgetune.settings.spec import to_plain
from edgetune.units import format_bytes
from edgetune.workflows.exporting import ExportOptions, export_run
from edgetune.workflows.over import Over


@click.command("export", short_help="Write a run or an adapter as files that other tools load.")
@click.argument("name", type=Ref(), metavar="REF")
@click.option("--to", type=click.Choice(list(EXPORTERS)), required=True, help="The format.")
@click.option("--output", type=FilePath(), required=True, help="A new folder, or a .gguf file.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Number format of merged weights. [default: the base's own]",
)
@click.option("--shard-size", type=Size(), metavar="SIZE", help="Largest file. [default: 5GB]")
@click.option(
    "--data",
    type=FilePath(),
    metavar="FILE",
    help="Rows to check a merge on. [default: the run's own]",
)
@click.option("--rank", type=int, help="Cut an adapter that dylora trained to this rank.")
@click.option(
    "--quantize",
    type=click.Choice(["q8", "q4", *MIXTURES]),
    help="How merged weights are stored: q8 and q4 for --to mlx, the others in GGUF files. "
    "[default: f16 for gguf, q4_k_m for ollama and lmstudio]",
)
@click.option("--adapter", is_flag=True, help="Only the LoRA, for --to gguf.")
@click.option("--create", is_flag=True, help="Run `ollama create` at the end of --to ollama.")
@click.option("--no-check", is_flag=True, help="Write without comparing with base and adapter.")
@over_options
@common_options
def command(
    name: str,
    to: str,
    output: Path,
    dtype: Any,
    shard_size: int | None,
    data: Path | None,
    rank: int | None,
    quantize: str | None,
    adapter: bool,
    create: bool,
    no_check: bool,
    over: Over,
    as_json: bool,
) -> None:
    """Write the adapter of a run (peft), the model with the adapter merged in (hf, or gguf for
    llama.cpp), or both for mlx-lm in one folder (mlx).

    ollama and lmstudio make a GGUF file and what those programs need beside it.

    REF is a run's folder, or an adapter's, over its own base or --model. A merged model is
    compared with base and adapter on rows of the run (or --data), and refused if it differs;
    GGUF files in llama.cpp, if the package xllamacpp is installed.
    """
    options = ExportOptions(
        dtype=dtype, shard_bytes=shard_size, data=data, rank=rank, quantize=quantize, over=over,
        adapter=adapter, check=not no_check, create=create,
    )  # fmt: skip
    result = export_run(name, to, output, options)
    if result.check is not None:
        say(
            f"KL of the merge {result.check.kl_max:.2e} at most, of the base without the adapter "
            f"{result.check.effect:.2e} on average",
            level=VERBOSE,
        )
    if as_json:
        out_json(
            {
                "folder": str(result.exported.folder),
                "file": result.exported.file and str(result.exported.file),
                "bytes": result.exported.nbytes,
                "check": to_plain(result.check),
                "same_tokens": result.client and result.client.same_tokens,
                "same_text": result.client and result.client.same_text,
                "difference": result.client and result.client.difference,
                "own_difference": result.client and result.client.own_difference,
                "notes": list(result.exported.notes),
            }
        )
        return
    out(f"Written {format_bytes(result.exported.nbytes)} to {result.exported.path}")
    if result.check is not None:
        check = result.check
        out(
            f"Checked on {check.rows} rows: {check.top1_agreement:.1%} of {check.tokens} tokens "
            f"have the same most probable successor, KL {check.kl_mean:.2e} on average"
        )
    if result.client is not None:
        client, rows = result.client, result.client.merge.rows
        out(
            f"In llama.cpp, {client.same_tokens} of {rows} rows have the same tokens, and "
            f"{client.same_text} of {rows} the same continuation"
        )
        own = client.own_difference
        of_file = "" if own is None else f", {own:.4f} from ours over this file"
        out(f"Largest difference of logits: {client.difference:.4f} from base and adapter{of_file}")
    for note in result.exported.notes:
        out(note)
