{ value }: { inherit value; name = undefinedvariable; }
