"""What a stranger runs first on a cluster's login node: is all there that a run will need?"""
