"""How a test loads a checkpoint, but for what it is about."""

LOADING = {
    "revision": None,
    "task": "auto",
    "dtype": "float32",
    "attention": "auto",
    "placement": "auto",
    "max_memory": None,
    "trust_remote_code": False,
    "allow_pickle": False,
    "offline": True,
    "on_event": lambda event: None,
}
