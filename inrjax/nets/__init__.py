"""Networks: a static spec, and pure functions over plain dict pytrees."""

from inrjax.nets import siren as siren
