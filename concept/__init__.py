"""One file a paper that learns a concept from pictures: what is trained, and with which loss."""
