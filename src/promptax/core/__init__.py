"""The foundation of the other packages: settings, types, errors, files, meshes and processes."""
