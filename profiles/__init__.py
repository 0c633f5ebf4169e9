"""Device profiles that come with eqdeploy: one YAML file each, no code."""
