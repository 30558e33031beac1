"""Speed and memory of training steps, alone or in a suite of rows beside a peer."""
