"""The command line's door: `resurge`, and `python -m orchestrator.cli` where no script is."""

from orchestrator.cli.here import leave_out_this_folder

leave_out_this_folder(is_module=__name__ == "__main__")

from orchestrator.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
