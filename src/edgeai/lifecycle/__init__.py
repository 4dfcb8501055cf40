"""How things live: pure state machines, (state, event) -> (state, commands)."""
