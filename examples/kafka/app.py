def handle(batch):
    for (key, payload), (_, partition, offset) in zip(batch, batch.origins.tolist()):
        print(partition, offset, key, payload, flush=True)
