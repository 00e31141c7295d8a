"""Prints the scalars that TensorBoard reads in a folder as JSON: {tag: [[step, value], ...]}.

JSON has no numbers that are not finite: they are printed as "nan", "inf" and "-inf".
"""

import json
import math
import sys

from tensorboard.backend.event_processing import event_accumulator


def printable(value):
    return value if math.isfinite(value) else str(value)


events = event_accumulator.EventAccumulator(
    sys.argv[1],
    size_guidance={event_accumulator.SCALARS: 0},  # All of them, not a sample.
    purge_orphaned_data=True,
)
events.Reload()
scalars = {
    tag: [[event.step, printable(event.value)] for event in events.Scalars(tag)]
    for tag in events.Tags()["scalars"]
}
print(json.dumps(scalars))
