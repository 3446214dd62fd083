"""Hardware: device types, clusters, links, and what each engine supports on them."""
