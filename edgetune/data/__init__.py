"""Files of examples to batches: rows, tokens and masks, packed, each one accounted for."""

from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.data.batches import Batches, Step, evaluation_batches, evaluation_rectangles
from edgetune.data.dataset import Dataset, read_dataset
from edgetune.data.encode import LossOn
from edgetune.data.examples import Examples
from edgetune.data.fields import parse_fields
from edgetune.data.fit import LongRows
from edgetune.data.read import ReadProgress, Report
from edgetune.data.receipt import Receipt
from edgetune.data.review import Review, review
from edgetune.data.tokenizer import Tokenizer, load_tokenizer
from edgetune.data.view import ShownRow, show_rows, view_row

__all__ = [
    "IGNORED",
    "Batches",
    "Dataset",
    "Examples",
    "LongRows",
    "LossOn",
    "MicroBatch",
    "ReadProgress",
    "Receipt",
    "Report",
    "Review",
    "ShownRow",
    "Step",
    "Tokenizer",
    "evaluation_batches",
    "evaluation_rectangles",
    "load_tokenizer",
    "parse_fields",
    "read_dataset",
    "review",
    "show_rows",
    "view_row",
]
