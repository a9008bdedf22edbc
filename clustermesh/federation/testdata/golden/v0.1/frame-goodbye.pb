:&
sequencebatch 3 came after batch 1