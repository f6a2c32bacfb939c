"""What fastfork is to reach, measured: `--goals`.

`rows` says what is to be reached, the modules named after what they measure find the figures, `table`, `plot` and
`levers` show them.
"""
