"""Reading and plotting the results of searches."""
