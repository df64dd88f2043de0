"""From a mask to what a runtime takes: which layers it can speed up."""
