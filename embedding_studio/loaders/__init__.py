"""Where contents come from: places that are named, and the items of tables, folders and URLs."""
