"""``python -m nexusflow_integrations.cli``: the command, for when its script is not on the path."""

from nexusflow_integrations.cli import main

if __name__ == "__main__":
    main()
