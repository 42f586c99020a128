"""`python -m orchestrator.cli`: the command line where no script is installed."""

from orchestrator.cli.main import main

main()
