"""Where and with what the jobs run; knows neither the data nor the network."""
