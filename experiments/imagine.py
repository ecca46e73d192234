"""How true is what a run imagines, and on-policy? ``python experiments/imagine.py RUN`` (see ``--help``)"""

import sys

from polygrad_jax.analysis.reports import exit_code, imagine_command

if __name__ == "__main__":
    sys.exit(exit_code("imagine", imagine_command, sys.argv[1:]))
