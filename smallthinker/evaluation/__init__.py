"""How well a store predicts a text, and how far it is from another store."""
