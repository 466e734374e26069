"""Every use of a private torch API, each with its reason; one file per topic. Nothing else in the
project imports a private name of torch's."""
