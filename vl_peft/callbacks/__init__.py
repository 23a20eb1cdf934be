"""What happens around training: tables, progress, pictures, results."""

from vl_peft.callbacks.guards import Guards
from vl_peft.callbacks.last_checkpoint import LastCheckpoint
from vl_peft.callbacks.overview import Overview
from vl_peft.callbacks.pictures import Pictures
from vl_peft.callbacks.progress import Progress
from vl_peft.callbacks.results import Results
from vl_peft.callbacks.submissions import Submissions

__all__ = ["Guards", "LastCheckpoint", "Overview", "Pictures", "Progress", "Results", "Submissions"]
