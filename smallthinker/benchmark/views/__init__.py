"""What is made of results: charts, tables, one HTML page. Reads summaries, measures nothing."""
