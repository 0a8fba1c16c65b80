"""The node's firewall: a table of its own in nftables that keeps nodes from reaching each other directly."""
