"""Where a model comes from: the hub, folders and files, pinned to exact contents."""
