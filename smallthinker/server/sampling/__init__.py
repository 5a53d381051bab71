"""What a request says of how tokens are drawn: parameters, penalties and biases, grammars."""
