# The part of constriction 0.5 that inrjax uses: the package has no types of its own.
from constriction import stream as stream
