-- A worker that will not come back. ARGV: worker.

forget(ARGV[1])
return 1
