"""Every use of a private torch API, each with its reason, a file a topic. Nothing else in the
project imports a private name of torch's."""
