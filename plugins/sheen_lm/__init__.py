"""What causal language models that write codec tokens share, whatever their base and codec. A
backbone of this kind is a module of hooks that hands its options on to the functions here.
"""
