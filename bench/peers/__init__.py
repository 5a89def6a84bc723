"""What SegmentQL is measured beside: each answers the same requests from the same PostgreSQL and the same Valkey."""
