"""The fast path of the mean of factors (U, B, V): alignments as variables, all logarithms in one batch."""
