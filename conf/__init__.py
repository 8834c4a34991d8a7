"""The configuration files of frcnn; a package so that an installed console script finds them."""
