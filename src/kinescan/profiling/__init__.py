"""What a model costs: parameters, MACs, memory, speed; and on which machine that was measured."""
