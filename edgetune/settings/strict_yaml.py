"""YAML as a plan file has it, and nothing else that YAML can be told to do.

No aliases (a few lines of them stand for billions of values), no tags, no name twice, no deep
nesting, no number that is none or that takes minutes to convert.
"""

from __future__ import annotations

from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import yaml

DEEPEST: Final = 20
MOST_VALUES: Final = 10_000
LONGEST_NUMBER: Final = 40
"""Characters."""
_TAGS: Final = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")
)
_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parsed_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: if it is not YAML, or has what a plan file never has.
    """
    import yaml

    try:
        return yaml.load(text, _loader())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{error.problem}{place}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None


@cache
def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class StrictLoader(yaml.SafeLoader):
        depth = 0
        values = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it has an alias (*), which plans never have")
            self.depth += 1
            self.values += 1
            if self.values > MOST_VALUES:
                raise ValueError(f"it has more than {MOST_VALUES:,} values")
            if self.depth > DEEPEST:
                raise ValueError("it is nested too deep")
            node: Any = super().compose_node(parent, index)
            self.depth -= 1
            if node.tag not in _TAGS:
                raise ValueError(f"it has a value of the type {node.tag.rpartition(':')[2]}")
            if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
                raise ValueError(f"it has a number of {len(node.value)} characters")
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            mapping = super().construct_mapping(node, deep)
            if len(mapping) < len(node.value):
                raise ValueError(f"a name occurs twice in line {node.start_mark.line + 1} or below")
            return mapping

        def construct_yaml_float(self, node: Any) -> float:
            number: float = super().construct_yaml_float(node)
            if not isfinite(number):
                raise ValueError(f"{node.value} is not a number")
            return number

    StrictLoader.add_constructor("tag:yaml.org,2002:float", StrictLoader.construct_yaml_float)
    return StrictLoader
