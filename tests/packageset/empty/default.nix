{ system }: { }
