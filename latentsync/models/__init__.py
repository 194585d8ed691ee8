"""The networks: mathematics only. Device and dtype come from the inputs; memory policy comes from outside."""
