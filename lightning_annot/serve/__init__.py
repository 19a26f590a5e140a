"""The labelling page: people answer in a browser what a run asks, while the run goes on."""
