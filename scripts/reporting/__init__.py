"""From records to one HTML page: a reader for each kind, pictures as SVG, the page around them."""
