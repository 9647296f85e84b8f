"""What each command takes, does, and says about itself.

A command is one class: its texts, its arguments and `run`.  The parser and the exit status are
:mod:`seqrec.cli`'s.  `run` imports what it needs, so that ``--help`` needs nothing.
"""

from __future__ import annotations

from seqrec.commands.base import Command
from seqrec.commands.runs import Compare, Evaluate, Recommend
from seqrec.commands.surroundings import Bench, Data, Doctor
from seqrec.commands.training import Resume, Train

EXIT_CODES = """\
exit status:
  0    done
  2    a mistake in command, configuration or data: one line on stderr, nothing created or lost
  130  Ctrl-C
  1    anything else; SEQREC_DEBUG=1 shows the traceback
"""

# as `seqrec --help` lists them
COMMANDS: tuple[Command, ...] = (
    *(Train(), Resume(), Evaluate(), Recommend(), Compare(), Data(), Doctor(), Bench()),
)
