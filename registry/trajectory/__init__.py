"""What a run of training did, step by step: from the records, in the weights, and in what the network predicts."""
