"""What travels: addresses, the catalogue of events, their envelope, arrays and chunks. Pure."""
