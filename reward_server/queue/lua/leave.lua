-- Forgets a worker that ends. ARGV: worker.

forget(ARGV[1])
return 1
