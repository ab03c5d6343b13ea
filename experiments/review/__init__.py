"""Where runs are reviewed in W&B, as code: a workspace, a report, and a search by W&B's own sweeps."""
