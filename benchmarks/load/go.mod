module sallyport.example/benchmarks/load

go 1.22
