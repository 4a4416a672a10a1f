"""An experiment on disk: settings, run folder, checkpoints, events, reports, presets."""
