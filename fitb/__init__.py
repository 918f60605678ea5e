"""fitb: distil BERT into TinyBERT on cluster schedulers, preempted and resumed to the bit."""

__version__ = "0.1.0"
