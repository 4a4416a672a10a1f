"""What every other room needs: settings, types, errors, meshes and processes."""
